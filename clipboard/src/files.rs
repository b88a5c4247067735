//! Copied files: lent to a peer, and borrowed from one.
//!
//! ```text
//! program that copied --list--> [list] --> [lend] === connection === [borrow] --> [list] --list--> program that pastes
//!                     files --------------^                             |
//!                                                       [engine] <--> /dev/fuse <--files-- the same program
//! ```
//! Programs paste a list of files, each as a URI. Those that we give lie in a file system of ours ([`mount`]), in which
//! nothing is: what a program reads there is asked for as it is read ([`engine`]), of the machine on which it was copied.
//! Nothing is copied in advance, nothing is left behind, and who reads sees sizes, and can say how far it is and stop.

pub mod borrow;
pub mod engine;
pub mod lend;
pub mod list;
pub mod mount;

mod answer;
mod node;
