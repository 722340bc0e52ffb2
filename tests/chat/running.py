"""A generator at work, and how far an answer is."""

import asyncio

from channels.db import database_sync_to_async
from redis.asyncio import Redis

from chat.generator import Generator
from chat.models import Conversation, Message


class Running:
    """A generator at work, which the test may end in an orderly way or not."""

    def __init__(self, redis: Redis) -> None:
        self.generator = Generator(redis)
        self.stopping = asyncio.Event()
        self.task = asyncio.create_task(self.generator.run(self.stopping))

    async def stop(self) -> None:
        self.stopping.set()
        await self.task

    async def kill(self) -> None:
        """What kill -9 leaves behind: leases not given back, nothing finished."""
        for task in self.generator._tasks.values():
            task.cancel()
        self.generator._tasks.clear()
        self.generator._open.clear()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def answer_of(conversation: Conversation) -> Message:
    return await database_sync_to_async(lambda: conversation.messages.get(number=2))()


async def ended(conversation: Conversation) -> Message:
    async with asyncio.timeout(60):
        while not (answer := await answer_of(conversation)).is_final:
            await asyncio.sleep(0.02)
    return answer
