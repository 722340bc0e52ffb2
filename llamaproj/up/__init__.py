"""`llamaproj up`: every process of the portal on one machine under one supervisor.

launcher     the order of a start and of a stop, and what the person is told
├── preflight    what must be true before anything is started
├── postgres     the embedded PostgreSQL
├── valkey       the embedded Valkey
├── demo         the demo model's file
└── supervisor   starts, prefixes, restarts and stops programs
    ├── program      one program: argv, user, how it is stopped
    └── leftovers    ends what a killed predecessor left running
"""
