//! What a Hospes host and guest say to each other: frames, messages and pure state machines.
