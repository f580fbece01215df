"""The door of the models: transformers' BERT classes with another engine. Importing it imports transformers."""
