"""The mathematics of ablation, in plain torch: the only code that travels to a server.

Everything here is shipped *by value and by source* into a process that has torch and
nnsight and not us, on another version of Python. Hence the rules of this room: import
torch and nothing else; plain functions and plain classes with a written ``__init__``
(a dataclass's generated methods would travel as bytecode of the wrong Python); no
decorators; weights are reached by calling modules, never by reading ``.weight``.
"""
