//! The real `hospes`, in a home of its own, and guests that are played by this process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]

mod agent;
mod exec;
mod guest;
mod home;
mod hostile;
mod machine;
mod terminal;
mod trust;
mod verbs;
