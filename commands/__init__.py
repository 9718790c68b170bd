"""The commands of the command line, a file for each subject; cli.py puts them together.

No logic here: parse, call, print. Every import that costs time happens inside the command it serves.
"""
