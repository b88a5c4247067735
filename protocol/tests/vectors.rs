//! The golden vectors: what each release put on the wire still means the same.

mod wire;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use hospes_protocol::frame::{Frame, FrameId};
use hospes_protocol::handshake::ClientHello;
use hospes_protocol::limits::HEADER_LEN;
use hospes_protocol::version::Version;
use wire::conversation::{Record, Side};
use wire::{conversation, folder, hostile, recode, replay};

/// What a person who changed a message is told.
const CHANGED: &str = "A message's bytes changed. In a release they never do: give the new shape a new FrameId (or add \
    a variant at an enum's end) and keep the old one. Before its release: \
    `cargo run -p hospes-protocol --example vectors -- --write`, and commit the folder";

fn bin(name: &str, kind: &str) -> bool {
    name.starts_with(kind) && name.ends_with(".bin")
}

fn frame(wire: &[u8]) -> Result<Frame<'_>> {
    let header = hospes_protocol::frame::Header::parse(*wire.first_chunk().context("half a header")?)?;
    let payload = &wire[HEADER_LEN..];
    ensure!(
        payload.len() == header.len as usize,
        "the payload is {} bytes, not {}",
        payload.len(),
        header.len
    );
    Ok(Frame { id: header.id, channel: header.channel, payload })
}

#[test]
fn every_releases_valid_vectors_decode_and_encode_to_the_same_bytes() -> Result<()> {
    for release in folder::releases()? {
        for (name, bytes) in folder::read(&release)?.iter().filter(|(name, _)| bin(name, "valid/")) {
            let at = || format!("{}/{name}: {CHANGED}", release.display());
            let frame = frame(bytes).with_context(at)?;
            let again = recode::recode(frame.id, frame.payload)
                .with_context(|| format!("{} is not in recode.rs", frame.id))
                .with_context(at)?
                .with_context(at)?;
            ensure!(again == frame.payload, "{} encodes to {again:02x?}", at());
        }
    }
    Ok(())
}

#[test]
fn every_releases_hostile_vectors_are_refused_as_they_should_be() -> Result<()> {
    for release in folder::releases()? {
        for (name, bytes) in folder::read(&release)?.iter().filter(|(name, _)| bin(name, "hostile/")) {
            let mut parts = name.split('/').skip(1);
            let (receiver, expected) = parts.next().zip(parts.next()).context("hostile/RECEIVER/ERROR/…")?;
            let refused = hostile::refused_as(receiver, bytes);
            ensure!(refused == Some(expected), "{}/{name} is refused as {refused:?}", release.display());
        }
    }
    Ok(())
}

#[test]
fn every_releases_conversations_go_the_same_way_today_in_both_roles() -> Result<()> {
    for release in folder::releases()? {
        for (name, bytes) in folder::read(&release)?.iter().filter(|(name, _)| name.ends_with(".conv")) {
            let at = |role| format!("{}/{name} with today's {role:?}: {CHANGED}", release.display());
            let records = conversation::from_bytes(bytes);
            replay::replay(&records, Side::Guest).with_context(|| at(Side::Guest))?;
            // A host offers all that it speaks, and signs that: the hello of a release with other versions is not
            // today's to repeat.
            if offers_todays_versions(&records)? {
                replay::replay(&records, Side::Host).with_context(|| at(Side::Host))?;
            }
        }
    }
    Ok(())
}

fn offers_todays_versions(records: &[Record]) -> Result<bool> {
    let first = records.first().context("an empty conversation")?.frame();
    Ok(first.id != FrameId::CLIENT_HELLO || first.decode::<ClientHello>()?.versions == Version::SUPPORTED)
}

#[test]
fn a_changed_proof_or_count_is_noticed() -> Result<()> {
    let proofs = ["CLIENT_HELLO", "SERVER_HELLO", "CLIENT_AUTH", "TICKET", "OPENED", "END"];
    for name in ["handshake-exec", "ticket-copy-push", "ticket-forward-half-close"] {
        let bytes = &folder::read(&folder::current())?[&format!("conversations/{name}.conv")];
        let good = conversation::from_bytes(bytes);
        for at in 0..good.len() {
            let id = good[at].frame().id;
            if !proofs.contains(&id.name().unwrap_or("")) {
                continue;
            }
            let mut bad = good.clone();
            *bad[at].wire.last_mut().context("a frame has a header")? ^= 1;
            for role in [Side::Host, Side::Guest] {
                ensure!(
                    replay::replay(&bad, role).is_err(),
                    "{name}: {id} may be changed unnoticed by {role:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn this_releases_vectors_are_todays() -> Result<()> {
    let path = folder::current();
    let (stored, today) = (folder::read(&path)?, folder::generate()?);
    for (name, bytes) in &today {
        ensure!(
            stored.get(name) == Some(bytes),
            "{}/{name} is missing or differs. {CHANGED}",
            path.display()
        );
    }
    for name in stored.keys() {
        ensure!(today.contains_key(name), "{}/{name} is no longer made. {CHANGED}", path.display());
    }
    Ok(())
}

#[test]
fn every_id_has_a_valid_vector() -> Result<()> {
    let files = folder::read(&folder::current())?;
    let seen: BTreeSet<u16> = files
        .iter()
        .filter(|(name, _)| bin(name, "valid/"))
        .map(|(_, bytes)| frame(bytes).map(|frame| frame.id.0))
        .collect::<Result<_>>()?;
    let missing: Vec<_> =
        (0..=u16::MAX).map(FrameId).filter(|id| id.name().is_some() && !seen.contains(&id.0)).collect();
    ensure!(missing.is_empty(), "No vector for {missing:?}: add one to tests/wire/samples.rs and recode.rs");
    Ok(())
}

#[test]
fn a_released_folder_is_as_it_was_sealed() -> Result<()> {
    for release in folder::releases()? {
        let Ok(sealed) = std::fs::read_to_string(release.join(folder::SEAL)) else {
            ensure!(
                release == folder::current(),
                "{} is of an older release and not sealed",
                release.display()
            );
            continue;
        };
        let now = folder::seal(&folder::read(&release)?);
        ensure!(now == sealed, "{} was changed after its release: restore it", release.display());
    }
    Ok(())
}
