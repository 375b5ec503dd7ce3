"""OpenAI's Responses on top of the queue: what was asked, how it is told, and the events in between."""
