"""What an evaluation found, for people and programs: reports, tables, pages, drawings."""
