//! The commands that have more to say than their options.

pub(crate) mod run;
mod terminal;
