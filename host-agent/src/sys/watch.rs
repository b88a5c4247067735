//! To be told that a file appeared, changed or went.
