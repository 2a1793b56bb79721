"""How the bundled model `demo` is made: pages, tokenizer, network, trainer, evaluation."""
