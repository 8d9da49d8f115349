"""Is it right? Three gradient checks, the table of every operation beside a reference, and the report of both."""
