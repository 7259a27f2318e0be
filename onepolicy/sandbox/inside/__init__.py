"""What runs inside the sandbox: standard library only, sent over as text, so that nothing of it has to be installed.

Modules in the order in which they import one another: `wire`, `confine`, `program`, `judge`, `server`.
"""

MODULES = ("wire", "confine", "program", "judge", "server")
