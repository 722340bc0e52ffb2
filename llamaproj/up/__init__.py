"""`llamaproj up`: every process of the portal on one machine under one supervisor; `llamaproj node`: a node worker.

launcher, node   the order of a start and of a stop, and what the person is told
├── preflight    what must be true before anything is started
├── node_address where this machine's llama-servers listen
├── postgres     the embedded PostgreSQL
├── valkey       the embedded Valkey
├── demo         the demo model's file
├── models       stopping this machine's llama-servers
├── stopping     from the start to Ctrl-C
└── supervisor   starts, prefixes, restarts and stops programs
    ├── program      one program: argv, user, how it is stopped
    └── leftovers    ends what a killed predecessor left running
"""
