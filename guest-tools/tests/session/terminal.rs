//! Commands on a terminal.

use hospes_protocol::exec::{Exec, Stdin, Terminal, WindowSize};

use super::worker::{Run, Worker, shell, words};

const SIZE: WindowSize = WindowSize { cols: 91, rows: 17, width: 0, height: 0 };

fn on_terminal(request: Exec) -> Exec {
    Exec {
        stdin: Stdin::STREAM,
        terminal: Some(Terminal { term: "xterm-256color".into(), size: SIZE }),
        ..request
    }
}

/// Its lines, as a terminal ends them.
fn lines(run: &Run) -> Vec<String> {
    run.text().split("\r\n").map(str::to_owned).collect()
}

#[test]
fn a_command_has_a_terminal_of_its_own_with_the_callers_size() {
    let worker = Worker::start();
    let script = "tty </dev/tty; echo $TERM; stty size; test -t 1 && test -t 2 && echo both; ps -o tpgid=,pgid=,sid= -p $$";
    let mut run = worker.exec(&on_terminal(shell(script)));
    assert_eq!(run.finish().code(), 0, "{}", run.text());
    let lines = lines(&run);
    assert!(lines[0].starts_with("/dev/"), "{lines:?}");
    assert_eq!(lines[1..4], ["xterm-256color", "17 91", "both"]);
    let ids: Vec<&str> = lines[4].split_whitespace().collect();
    assert!(
        ids.len() == 3 && ids[0] == ids[1] && ids[1] == ids[2],
        "foreground, group and session are one: {ids:?}"
    );
}

#[test]
fn a_resize_reaches_the_command() {
    let worker = Worker::start();
    let mut run = worker.exec(&on_terminal(shell(
        "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done",
    )));
    run.until(|run| run.text().contains("ready"));
    let size = WindowSize { cols: 120, rows: 40, ..SIZE };
    run.with_out(|host, out| host.resize(size, out));
    assert_eq!(run.finish().code(), 0);
    assert!(run.text().contains("40 120"), "{}", run.text());
}

#[test]
fn the_end_of_the_input_is_the_end_of_file_character() {
    let worker = Worker::start();
    for input in ["one\ntwo\n", "no newline at the end", ""] {
        let mut run = worker.exec(&on_terminal(shell("stty -echo; echo ready; cat; echo over")));
        run.until(|run| run.text().contains("ready"));
        run.write_stdin(input.as_bytes());
        run.end_stdin();
        assert_eq!(run.finish().code(), 0);
        let text = run.text().replace("\r\n", "\n");
        assert!(text.ends_with(&format!("ready\n{input}over\n")), "{text:?}");
    }
}

#[test]
fn an_interrupt_typed_reaches_the_foreground() {
    let worker = Worker::start();
    // No shell: dash catches the signal while it starts a program, and may forget it.
    let mut run = worker.exec(&on_terminal(words(&["cat"])));
    run.write_stdin(b"ready\n");
    // Once by the terminal's echo, and once by cat, which runs therefore.
    run.until(|run| run.text().matches("ready").count() == 2);
    run.write_stdin(b"\x03");
    let end = run.finish().exited();
    assert_eq!(end.status.shell_code(), 130);
}

#[test]
fn all_that_was_written_arrives_before_the_end() {
    let worker = Worker::start();
    for _ in 0..5 {
        let mut run = worker.exec(&on_terminal(words(&["seq", "20000"])));
        assert_eq!(run.finish().code(), 0);
        let wanted: String = (1..=20_000).map(|n| format!("{n}\r\n")).collect();
        assert!(run.text() == wanted, "{} bytes of {}", run.stdout.len(), wanted.len());
    }
}
