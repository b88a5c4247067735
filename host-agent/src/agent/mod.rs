//! The agent: keeps a control session to each VM and hands tickets to commands.

pub mod ask;
