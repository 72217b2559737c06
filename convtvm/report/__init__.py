"""One page of pictures, tables and sentences about a tuning run, a library, a model, a comparison.

Pictures are Vega-Lite: drawn in the browser by the scripts that vl-convert brings, or to a file.
"""
