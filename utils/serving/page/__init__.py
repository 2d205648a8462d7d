"""chat.py --web: a page for a browser, in gradio."""
