"""The bodies of OpenAI's endpoints as they come in. They check shapes; values are the wire's to judge."""
