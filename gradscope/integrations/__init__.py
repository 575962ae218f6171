"""Recording from inside a framework, and runs in other programs' formats: one file each.

Nothing here is imported with `gradscope`: what a file needs is installed by the extra of its
name (`pip install 'gradscope[huggingface]'`).
"""
