//! Inputs that the fuzz targets begin with: the golden vectors, each where it is understood.

use std::fs;
use std::path::{Path, PathBuf};

/// Target names and inputs.
pub(crate) fn all() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |target: &str, bytes: &[u8]| seeds.push((target.to_owned(), bytes.to_vec()));
    let (mut hello, mut auth) = (Vec::new(), Vec::new());
    for file in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")) {
        let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let bytes = fs::read(&file).unwrap_or_default();
        // Floods of data would only slow the fuzzers down.
        if bytes.len() > 8192 {
            continue;
        }
        let in_folder = |word: &str| file.components().any(|part| part.as_os_str() == word);
        if file.extension().is_some_and(|extension| extension == "conv") {
            continue;
        }
        // Two cuts, of one byte and of 257.
        add("frame", &[&[1, 0, 0, 0, 1][..], &bytes].concat());
        add("messages", &bytes);
        match name.as_str() {
            "server-hello" => add("handshake_host", &bytes),
            "client-hello" => hello = bytes.clone(),
            "client-auth" => auth = bytes.clone(),
            _ => (),
        }
        let payload = bytes.get(8..).unwrap_or_default();
        if name.starts_with("request-") {
            add("control_number", payload);
        }
        if name == "ticket" {
            add("ticket", &[&[0xff][..], payload, &[0, 1, 0, 0, 1, 0, 0, 0x40, 0x1f, 0, 2, 0]].concat());
        }
        if in_folder("archive") {
            let len = u32::try_from(payload.len()).unwrap_or(0).to_le_bytes();
            add("archive", &[&[255][..], &len, payload].concat());
        }
        // Which machine, then its first frame as the target has it: id, channel, length.
        for (folder, which) in
            [("clipboard-host", 0), ("clipboard-guest", 1), ("clipboard-sink", 2), ("clipboard-source", 4)]
        {
            if in_folder(folder) {
                let len = bytes.get(4).copied().unwrap_or_default();
                let head = bytes.get(..3).unwrap_or_default();
                add("clipboard", &[&[which, 2][..], head, &[len], payload].concat());
            }
        }
        for (folder, target) in [("handshake-host", "handshake_host"), ("handshake-guest", "handshake_guest")]
        {
            if in_folder(folder) {
                add(target, &bytes);
            }
        }
    }
    add("handshake_guest", &[hello, auth].concat());
    // Moves: start, output, stdin, writes, ends, status.
    add("exec_host", &[0, 8, 40, 1, 1, 0x81, 2, 10, 1, 0x8a, 1, 9, 3, 0x83, 4, 14]);
    add("exec_host", &[0, 1, 1, 1, 1, 10, 1, 6, 0, 0, 1, 0, 8, 1, 11, 1, 40, 3, 0x83, 4, 14]);
    add("exec_guest", &[7, 0, 0, 1, 0, 1, 6, 1, 5, 1, 3, 0, 0, 1, 0, 5, 1, 2, 7, 1, 7, 3]);
    add("exec_guest", &[7, 0, 7, 2, 0, 9, 2, 4, 6, 0, 0, 0, 7, 1]);
    add("exec_pair", &[0, 1, 1, 1, 1, 3, 1, 3, 1, 6, 5, 1, 1, 1, 6, 1, 1, 3, 1, 7, 0, 7, 1, 6, 248, 6]);
    add("forward", &[0, 0, 1, 1, 1, 1, 8, 1, 7, 1, 5, 0, 0, 1, 0, 7, 1, 9, 4, 11, 1]);
    add("forward", &[1, 1, 9, 10, 1, 9, 7, 1, 4, 9, 11, 0]);
    seeds
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
