"""Long jobs: a file of requests in, a file of records out, and nothing lost in between.

streams    the bytes of the input: a file or a pipe, unpacked, in UTF-8
tables     arrays and tables as items
sources    the input as numbered items, and the format that they are in
layouts    the formats: where an object keeps its prompt, and what else it holds
openai     the fields of OpenAI's requests in our words
lines      items of the input to requests, bad ones to errors
run        requests through a decoder, as completed or in order, in bounded memory
records    the output: one JSON line for each line of the input, with that line's number
journal    the output file: durable, cut clean after a kill, the only record of what is done
ownership  whether an output belongs to the job that wants to resume it
job        one input, one output, and what is left to do between them
"""
