"""From step times to what a request sees: batching, queues, closed and open loops."""
