"""`gradscope run`: training scripts that know nothing of gradscope, run as python runs them.

`command` says which program to become; that is `boot`, which imports neither torch nor
gradscope before the script imports torch; from then on a `Recording` finds models and
optimizers and attaches scopes to them.
"""
