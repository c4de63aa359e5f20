"""What every benchmark shares, none of which knows what is measured.

command     a script's options, and its run from the first measurement to the files it leaves
placement   the same run twice: pinned to one core, and free
processes   CPU time and memory of processes, from outside
samples     from a list of times to the figures that are reported
goals       what is promised, against what was measured
machine     on what and with which versions
tables      rows as text
plots       rows as pictures; nothing is drawn where matplotlib isn't installed
"""
