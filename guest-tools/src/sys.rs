//! The platform's edge of the worker: processes, pipes, terminals and signals as Linux has them.

pub(crate) mod children;
pub(crate) mod clone;
pub(crate) mod descriptor;
pub(crate) mod limits;
pub(crate) mod listener;
pub(crate) mod signals;
pub(crate) mod terminal;
pub(crate) mod vsock;
