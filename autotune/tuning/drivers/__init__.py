"""Drivers: who starts and stops the servers that are measured."""
