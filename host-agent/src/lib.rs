//! Hospes on the host: the agent, its client library and the hospes command.
