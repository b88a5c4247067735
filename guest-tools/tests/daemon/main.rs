//! A real `hospes-toolsd`, and hosts that are good, wrong or hostile.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod freeze;
mod harness;
mod power;
mod qga;
mod serving;
mod variable;
