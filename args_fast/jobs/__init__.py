"""Long jobs: a file of requests in, a file of records out, and nothing lost in between.

lines      the input: JSON lines to requests, bad ones to errors
run        requests through a decoder, as completed or in order, in bounded memory
records    the output: one JSON line for each line of the input, which carries its number
journal    the output file: durable, cut clean after a kill, the only record of what is done
ownership  whether an output belongs to the job that wants to go on with it
job        one input, one output, and what is left to do between them
"""
