//! Tests across crates, and the lab that boots real guests.
