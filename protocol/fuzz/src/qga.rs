//! The framing of the QEMU guest agent's protocol: cuts change nothing, and no piece is longer than the limit.

use hospes_protocol::qga::{COMMAND_LEN, Piece, Splitter};

/// The first byte says how long the pieces are in which the rest arrives.
pub fn qga(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let mut whole = Vec::new();
    Splitter::new().take(bytes, |piece| whole.push(piece));
    let (mut splitter, mut cuts) = (Splitter::new(), Vec::new());
    for part in bytes.chunks(usize::from(cut) + 1) {
        splitter.take(part, |piece| cuts.push(piece));
    }
    assert_eq!(whole, cuts);
    for piece in whole {
        if let Piece::Object(object) = piece {
            assert!(object.len() <= COMMAND_LEN && object.starts_with(b"{"));
        }
    }
}
