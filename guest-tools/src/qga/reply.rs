//! Replies as QEMU's own agent writes them: a space behind each colon and comma, a line end behind each reply. A host
//! compares them byte for byte (vfkit: `{"return": {}}`).

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Value};

/// The classes of errors (QEMU's qapi/error.json).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Anything.
    GenericError,
    /// There is no such command, or the policy does not allow it.
    CommandNotFound,
}

/// Why a command is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its class.
    pub class: Class,
    /// For people.
    pub desc: String,
}

impl Refusal {
    /// One of the general class.
    #[must_use]
    pub fn new(desc: impl Into<String>) -> Self {
        Self { class: Class::GenericError, desc: desc.into() }
    }
}

/// The bytes of a reply. `id` is the command's own, which comes back.
#[must_use]
pub fn line(result: &Result<Value, Refusal>, id: Option<&Value>) -> Vec<u8> {
    let mut reply = Map::new();
    match result {
        Ok(value) => drop(reply.insert("return".into(), value.clone())),
        Err(Refusal { class, desc }) => {
            let class = match class {
                Class::GenericError => "GenericError",
                Class::CommandNotFound => "CommandNotFound",
            };
            reply.insert("error".into(), serde_json::json!({ "class": class, "desc": desc }));
        }
    }
    if let Some(id) = id {
        reply.insert("id".into(), id.clone());
    }
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut line, Spaced);
    // A value of our own, into memory: nothing can fail.
    let _ = Value::Object(reply).serialize(&mut serializer);
    line.push(b'\n');
    line
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reply_has_qemus_bytes() {
        assert_eq!(line(&Ok(json!({})), None), b"{\"return\": {}}\n");
        assert_eq!(line(&Ok(json!([1, { "a": "b, c" }])), None), b"{\"return\": [1, {\"a\": \"b, c\"}]}\n");
        let refusal =
            Refusal { class: Class::CommandNotFound, desc: "The command x has not been found".into() };
        assert_eq!(
            line(&Err(refusal), Some(&json!("7"))),
            b"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command x has not been found\"}, \"id\": \"7\"}\n"
        );
    }
}
