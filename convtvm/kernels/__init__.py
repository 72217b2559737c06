"""An algorithm joined with its template and lowered to machine code."""
