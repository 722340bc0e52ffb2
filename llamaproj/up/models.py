"""Stopping this machine's llama-servers, with the database's help or without it."""

import asyncio

from llamaproj.up.supervisor import Output

_PATIENCE_S = 4


async def stop_models(output: Output) -> None:
    """Stop them and keep what is wanted; say what went wrong. Without the database they are ended all the same."""
    from llamaproj.up import portal

    try:
        trouble = await asyncio.wait_for(asyncio.to_thread(portal.stop_models), _PATIENCE_S)
    except TimeoutError:
        trouble = "The database didn't answer in time; the next start takes care of its rows."
    if trouble:
        output.say(trouble)
        await asyncio.to_thread(portal.end_models)
