use std::collections::BTreeMap;

use hospes_fuse::abi::{self, op};
use hospes_fuse::request::decode;
use hospes_protocol::clipboard::files::{Entries, Entry, Lender, Node, Refusal, Root};
use hospes_protocol::frame::{self, FrameBuffer, FrameId};

use super::*;

/// The kernel, the engine, and a lender that answers when it is told to.
struct Rig {
    engine: Engine,
    tree: TreeId,
    unique: u64,
    answers: BTreeMap<u64, Result<Vec<u8>, Errno>>,
    asked: Vec<Ask>,
}

fn attributes(kind: NodeKind, size: u64, target: &[u8]) -> Attributes {
    Attributes { kind, executable: false, size, modified: 1, modified_ns: 0, target: target.to_vec() }
}

impl Rig {
    fn new(roots: &[&str]) -> Self {
        let mut engine = Engine::new(1000, 1000);
        let root = |name: &&str| Root { name: name.as_bytes().to_vec(), ..Root::default() };
        let roots = Roots { roots: roots.iter().map(root).collect() };
        let mut borrower = Borrower::new();
        let mut wire = Vec::new();
        Lender::new(&roots, &mut wire);
        let mut input = FrameBuffer::new();
        input.push(&wire);
        borrower.receive(input.take().unwrap().unwrap()).unwrap();
        let tree = engine.add(roots, borrower);
        Self { engine, tree, unique: 0, answers: BTreeMap::new(), asked: Vec::new() }
    }

    /// A request; its answer may come later.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        self.unique += 1;
        let (unique, len) = (self.unique, 0);
        let header = Header { len, opcode, unique, node, uid: 1000, gid: 1000, pid: 1 };
        let answers = &mut self.answers;
        let mut reply = |unique, answer: Result<&[u8], Errno>| {
            assert!(answers.insert(unique, answer.map(<[u8]>::to_vec)).is_none(), "answered twice");
        };
        self.engine.request(&header, decode(opcode, body), &mut reply);
        let mut input = FrameBuffer::new();
        input.push(&self.engine.outgoing(self.tree));
        let mut lender = Lender::default();
        while let Some(frame) = input.take().unwrap() {
            self.asked.extend(lender.receive(frame).unwrap());
        }
        unique
    }

    fn answer<T: serde::Serialize>(&mut self, id: FrameId, message: &T) -> Result<(), FilesError> {
        let mut wire = Vec::new();
        frame::put(id, message, &mut wire);
        self.hear(&wire)
    }

    fn bytes(&mut self, id: u64, bytes: &[u8]) {
        let mut wire = Vec::new();
        frame::put_raw(FrameId::CLIPBOARD_BYTES, 0, &[&id.to_le_bytes()[..], bytes].concat(), &mut wire);
        self.hear(&wire).unwrap();
    }

    fn hear(&mut self, wire: &[u8]) -> Result<(), FilesError> {
        let mut input = FrameBuffer::new();
        input.push(wire);
        let answers = &mut self.answers;
        let mut reply = |unique, answer: Result<&[u8], Errno>| {
            assert!(answers.insert(unique, answer.map(<[u8]>::to_vec)).is_none(), "answered twice");
        };
        self.engine.receive(self.tree, input.take().unwrap().unwrap(), &mut reply)
    }

    fn node(&mut self, attributes: Attributes) {
        let id = self.next().id;
        self.answer(FrameId::CLIPBOARD_NODE, &Node { id, attributes }).unwrap();
    }

    /// The next question.
    fn next(&mut self) -> Ask {
        self.asked.remove(0)
    }

    /// What a request was answered, if it was.
    fn got(&mut self, unique: u64) -> Result<Vec<u8>, Errno> {
        self.answers.remove(&unique).expect("no answer")
    }

    fn number(answer: &[u8]) -> u64 {
        u64::from_le_bytes(*answer.first_chunk().unwrap())
    }

    /// Looks up the first root.
    fn root(&mut self, name: &str, found: Attributes) -> u64 {
        let top = self.ask(op::LOOKUP, abi::ROOT, b"1\0");
        let top = Self::number(&self.got(top).unwrap());
        let root = self.ask(op::LOOKUP, top, format!("{name}\0").as_bytes());
        assert_eq!(self.asked[0].path, b"");
        self.node(found);
        Self::number(&self.got(root).unwrap())
    }

    fn open(&mut self, opcode: u32, node: u64) -> u64 {
        self.ask(opcode, node, &[0; 8])
    }

    fn read(&mut self, handle: u64, offset: u64, size: u32) -> u64 {
        self.ask(
            op::READ,
            0,
            &[&handle.to_le_bytes()[..], &offset.to_le_bytes(), &size.to_le_bytes()].concat(),
        )
    }

    fn list(&mut self, handle: u64, offset: u64) -> u64 {
        let body = [&handle.to_le_bytes()[..], &offset.to_le_bytes(), &4096u32.to_le_bytes()].concat();
        self.ask(op::READDIR, 0, &body)
    }

    fn entries(&mut self, names: &[&str]) {
        let id = self.next().id;
        let entry = |name: &&str| Entry { name: name.as_bytes().to_vec(), attributes: file(1) };
        self.answer(FrameId::CLIPBOARD_ENTRIES, &Entries { id, entries: names.iter().map(entry).collect() })
            .unwrap();
    }
}

fn file(size: u64) -> Attributes {
    attributes(NodeKind::FILE, size, b"")
}

fn folder() -> Attributes {
    attributes(NodeKind::DIRECTORY, 0, b"")
}

#[test]
fn a_file_is_asked_for_as_it_is_read() {
    let mut rig = Rig::new(&["large"]);
    let node = rig.root("large", file(1 << 40));
    assert!(rig.asked.is_empty(), "nothing is read in advance");
    let opened = rig.open(op::OPEN, node);
    assert_eq!((rig.asked.len(), rig.asked[0].deed), (1, Deed::OPEN));
    rig.node(file(1 << 40));
    let handle = Rig::number(&rig.got(opened).unwrap());
    let (one, two) = (rig.read(handle, 1 << 39, 4), rig.read(handle, 0, 3));
    let (first, second) = (rig.next(), rig.next());
    assert_eq!((first.offset, first.len, first.deed), (1 << 39, 4, Deed::READ));
    rig.bytes(first.id, b"far ");
    rig.bytes(second.id, b"one");
    assert_eq!((rig.got(one).unwrap(), rig.got(two).unwrap()), (b"far ".to_vec(), b"one".to_vec()));
    rig.ask(op::RELEASE, node, &handle.to_le_bytes());
    assert_eq!((rig.next().deed, rig.engine.use_of(rig.tree).1), (Deed::CLOSE, false));
}

#[test]
fn a_small_file_takes_one_round_trip() {
    let mut rig = Rig::new(&["small"]);
    let node = rig.root("small", file(5));
    let opened = rig.open(op::OPEN, node);
    assert_eq!(rig.asked.iter().map(|ask| ask.deed).collect::<Vec<_>>(), [Deed::OPEN, Deed::READ]);
    rig.node(file(5));
    let handle = Rig::number(&rig.got(opened).unwrap());
    let early = rig.read(handle, 0, 4096);
    let head = rig.next();
    rig.bytes(head.id, b"hello");
    assert_eq!(rig.got(early).unwrap(), b"hello");
    let (rest, end) = (rig.read(handle, 3, 4096), rig.read(handle, 5, 4096));
    assert_eq!((rig.got(rest).unwrap(), rig.got(end).unwrap()), (b"lo".to_vec(), Vec::new()));
    assert!(rig.asked.is_empty());
}

#[test]
fn a_program_that_is_ended_waits_for_no_answer() {
    let mut rig = Rig::new(&["slow"]);
    let node = rig.root("slow", file(1 << 30));
    let opened = rig.open(op::OPEN, node);
    rig.node(file(1 << 30));
    let handle = Rig::number(&rig.got(opened).unwrap());
    let read = rig.read(handle, 0, 100);
    rig.ask(op::INTERRUPT, 0, &read.to_le_bytes());
    assert_eq!(rig.got(read), Err(Errno::EINTR));
    let late = rig.next();
    rig.bytes(late.id, b"late");
    assert!(rig.answers.is_empty(), "answered twice");
    // The same for one that waits for a file to open: what is opened then is closed.
    let opened = rig.open(op::OPEN, node);
    rig.ask(op::INTERRUPT, 0, &opened.to_le_bytes());
    assert_eq!(rig.got(opened), Err(Errno::EINTR));
    rig.node(file(1 << 30));
    let _ = rig.ask(op::STATFS, abi::ROOT, &[]);
    assert_eq!(rig.next().deed, Deed::CLOSE);
}

#[test]
fn whoever_waits_for_a_lender_that_is_gone_gets_an_error() {
    let mut rig = Rig::new(&["a"]);
    let node = rig.root("a", file(10));
    let opened = rig.open(op::OPEN, node);
    rig.node(file(10));
    let handle = Rig::number(&rig.got(opened).unwrap());
    let (parked, stat) = (rig.read(handle, 0, 5), rig.ask(op::GETATTR, node, &[0; 16]));
    let answers = &mut rig.answers;
    rig.engine.remove(rig.tree, &mut |unique, answer| {
        answers.insert(unique, answer.map(<[u8]>::to_vec));
    });
    assert_eq!((rig.got(parked), rig.got(stat)), (Err(Errno::EIO), Err(Errno::EIO)));
    let (read, stat, opened) =
        (rig.read(handle, 0, 5), rig.ask(op::GETATTR, node, &[0; 16]), rig.open(op::OPEN, node));
    for unique in [read, stat, opened] {
        assert_eq!(rig.got(unique), Err(Errno::EIO));
    }
    let top = rig.ask(op::LOOKUP, abi::ROOT, b"1\0");
    assert_eq!(rig.got(top), Err(Errno::ENOENT));
}

#[test]
fn only_what_was_copied_is_there() {
    let mut rig = Rig::new(&["a", "a"]);
    for name in [&b"0\0"[..], b"3\0", b"01\0", b"x\0", b"+1\0"] {
        let looked = rig.ask(op::LOOKUP, abi::ROOT, name);
        assert_eq!(rig.got(looked), Err(Errno::ENOENT), "{name:?}");
    }
    let top = rig.ask(op::LOOKUP, abi::ROOT, b"2\0");
    let top = Rig::number(&rig.got(top).unwrap());
    let other = rig.ask(op::LOOKUP, top, b"b\0");
    assert_eq!(rig.got(other), Err(Errno::ENOENT));
    let second = rig.ask(op::LOOKUP, top, b"a\0");
    assert_eq!(rig.next().root, 1);
    let refusal = Refusal { id: 1, kind: ErrorKind::PERMISSION };
    rig.answer(FrameId::CLIPBOARD_REFUSAL, &refusal).unwrap();
    assert_eq!(rig.got(second), Err(Errno::EACCES));
    let written = rig.ask(op::OPEN, top, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.got(written), Err(Errno::EROFS));
}

#[test]
fn a_directory_is_listed_in_pages_and_from_its_beginning_again() {
    let mut rig = Rig::new(&["d"]);
    let node = rig.root("d", folder());
    let opened = rig.open(op::OPENDIR, node);
    assert_eq!(rig.asked.iter().map(|ask| ask.deed).collect::<Vec<_>>(), [Deed::LIST, Deed::MORE]);
    rig.node(folder());
    let handle = Rig::number(&rig.got(opened).unwrap());
    let has = |answer: &[u8], name: &[u8]| answer.windows(name.len()).any(|part| part == name);
    let listed = rig.list(handle, 0);
    assert!(has(&rig.got(listed).unwrap(), b".."));
    let listed = rig.list(handle, 2);
    rig.entries(&["one", "two"]);
    let page = rig.got(listed).unwrap();
    assert!(has(&page, b"one") && has(&page, b"two"));
    let listed = rig.list(handle, 4);
    rig.entries(&["three"]);
    assert!(has(&rig.got(listed).unwrap(), b"three"));
    let listed = rig.list(handle, 5);
    rig.entries(&[]);
    assert_eq!(rig.got(listed).unwrap(), b"");
    // rewinddir(3)
    let listed = rig.list(handle, 0);
    assert_eq!(rig.asked.iter().map(|ask| ask.deed).collect::<Vec<_>>(), [Deed::LIST, Deed::MORE]);
    rig.node(folder());
    rig.entries(&["one"]);
    assert!(has(&rig.got(listed).unwrap(), b"one"));
}

#[test]
fn a_link_that_leads_out_is_not_there_whatever_its_lender_says() {
    let mut rig = Rig::new(&["d"]);
    let node = rig.root("d", folder());
    for (target, good) in [(&b"/etc/passwd"[..], false), (b"../x", false), (b"x", true)] {
        let looked = rig.ask(op::LOOKUP, node, b"link\0");
        rig.node(attributes(NodeKind::LINK, 0, target));
        match rig.got(looked) {
            Ok(found) => {
                assert!(good, "{target:?}");
                let read = rig.ask(op::READLINK, Rig::number(&found), &[]);
                assert_eq!(rig.got(read).unwrap(), target);
            }
            Err(errno) => assert_eq!((errno, good), (Errno::ENOENT, false), "{target:?}"),
        }
    }
}

#[test]
fn what_the_kernel_forgets_takes_no_memory() {
    let mut rig = Rig::new(&["d"]);
    let node = rig.root("d", folder());
    let before = rig.engine.nodes.len();
    let mut found = Vec::new();
    for n in 0..100 {
        let looked = rig.ask(op::LOOKUP, node, format!("{n}\0").as_bytes());
        rig.node(file(1));
        found.push(Rig::number(&rig.got(looked).unwrap()));
    }
    assert_eq!(rig.engine.nodes.len(), before + 100);
    // The directory first, which stays for what is in it.
    rig.ask(op::FORGET, node, &1u64.to_le_bytes());
    for id in found {
        rig.ask(op::FORGET, id, &1u64.to_le_bytes());
    }
    assert_eq!(rig.engine.nodes.len(), before - 1);
}

#[test]
fn a_lender_that_answers_what_nobody_asked_is_ended() {
    let mut rig = Rig::new(&["d"]);
    let node = Node { id: 1, attributes: file(1) };
    assert!(rig.answer(FrameId::CLIPBOARD_NODE, &node).is_err());
}
