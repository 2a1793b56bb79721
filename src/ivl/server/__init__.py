"""HTTP: the APIs of OpenAI and Ollama, metrics, and a page. `app.py` puts them together."""
