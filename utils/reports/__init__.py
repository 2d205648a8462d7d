"""Results for people and programs: report.json, tables, HTML pages, drawings, model cards."""
