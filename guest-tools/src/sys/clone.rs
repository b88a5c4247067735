//! A program started with vfork's economy: the child borrows our memory until its program begins.
//!
//! `posix_spawn` does the same inside, but tells only an errno. Here the child says which step failed, it searches the
//! `PATH` itself, and nothing is done that a command does not need.
//!
//! The child runs on a stack of its own, in our memory, while we wait in clone(2). It makes system calls and nothing
//! else: no allocation, no lock, no panic. The worker has no signal handlers and blocks the signals it reads, so the
//! child's first act on signals is to clear its mask, just before its program begins.
#![expect(unsafe_code, reason = "clone, and what the child may do before its program begins")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;

/// Bytes of the child's stack. Its one function has no recursion and no large local.
const STACK: usize = 64 * 1024;

/// What the child gets as its standard input, output and error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stdio<'a> {
    /// Descriptors 0, 1 and 2.
    pub(crate) fds: [BorrowedFd<'a>; 3],
    /// Whether descriptor 0 is a terminal that becomes the new session's own.
    pub(crate) terminal: bool,
}

/// A program to start.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// Where it may be: tried in order, the first that can be executed is it.
    pub(crate) paths: &'a [CString],
    /// Its arguments, its own name first.
    pub(crate) argv: &'a [CString],
    /// Its environment, `NAME=value`.
    pub(crate) env: &'a [CString],
    /// Its working directory.
    pub(crate) cwd: &'a CStr,
    /// Where it starts if that directory cannot be entered.
    pub(crate) else_cwd: Option<&'a CStr>,
    /// Its standard descriptors.
    pub(crate) stdio: Stdio<'a>,
}

/// The step at which the child failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Step {
    /// A process could not be made at all.
    Clone = 0,
    /// Its session, terminal or standard descriptors.
    Stdio = 1,
    /// Entering the working directory.
    Cwd = 2,
    /// Executing the program.
    Exec = 3,
}

/// Why no program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CloneError {
    /// At which step.
    pub(crate) step: Step,
    /// The kernel's word.
    pub(crate) errno: Errno,
}

/// The stack that children borrow, one after the other: the parent waits while a child is on it.
pub(crate) struct Cloner {
    stack: Box<[u8]>,
    /// How many descriptors a child may open.
    descriptors: libc::rlimit,
}

/// What parent and child share while the child is on its way.
struct Launch {
    paths: *const *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    /// `/bin/sh`, the path and the arguments, for a program that the kernel does not know how to execute. The second
    /// entry is filled in by the child.
    shell_argv: *mut *const c_char,
    cwd: *const c_char,
    else_cwd: *const c_char,
    fds: [c_int; 3],
    terminal: bool,
    mask: libc::sigset_t,
    descriptors: libc::rlimit,
    step: Step,
    errno: c_int,
}

const SHELL: &CStr = c"/bin/sh";

impl Cloner {
    /// A cloner whose children get this limit on descriptors.
    pub(crate) fn new(descriptors: libc::rlimit) -> Self {
        Self { stack: vec![0; STACK].into_boxed_slice(), descriptors }
    }

    /// Starts the program in a session of its own and returns its process id, which is also its group's and its
    /// session's. It is our child and must be waited for.
    ///
    /// # Errors
    /// [`CloneError`]; no child is left.
    pub(crate) fn start(&mut self, program: &Program<'_>) -> Result<i32, CloneError> {
        let paths = pointers(program.paths);
        let argv = pointers(program.argv);
        let env = pointers(program.env);
        let mut shell_argv = vec![SHELL.as_ptr(), ptr::null()];
        shell_argv.extend_from_slice(&argv[1.min(argv.len() - 1)..]);
        let mut mask = std::mem::MaybeUninit::uninit();
        // SAFETY: sigemptyset fills the set that it is given.
        let mask = unsafe {
            libc::sigemptyset(mask.as_mut_ptr());
            mask.assume_init()
        };
        let mut launch = Launch {
            paths: paths.as_ptr(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            shell_argv: shell_argv.as_mut_ptr(),
            cwd: program.cwd.as_ptr(),
            else_cwd: program.else_cwd.map_or(ptr::null(), CStr::as_ptr),
            fds: program.stdio.fds.map(|fd| fd.as_raw_fd()),
            terminal: program.stdio.terminal,
            mask,
            descriptors: self.descriptors,
            step: Step::Clone,
            errno: 0,
        };
        let launch_ptr = &raw mut launch;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the stack's end is within one past its allocation, 16-byte aligned below, and lives as long as the
        // child is on it: CLONE_VFORK holds us here until it executes or exits. `launch` and all it points to outlive
        // the call for the same reason, and nobody else touches them meanwhile.
        let pid = unsafe {
            let top = self.stack.as_mut_ptr().add(STACK);
            let top = top.sub(top.addr() % 16);
            libc::clone(child, top.cast::<c_void>(), flags, launch_ptr.cast::<c_void>())
        };
        if pid < 0 {
            return Err(CloneError { step: Step::Clone, errno: Errno::last() });
        }
        // SAFETY: `launch` is ours alone again. The child wrote to it behind the compiler's back, hence volatile.
        let (step, errno) = unsafe {
            (
                (&raw const (*launch_ptr).step).read_volatile(),
                (&raw const (*launch_ptr).errno).read_volatile(),
            )
        };
        if errno == 0 {
            return Ok(pid);
        }
        // It has exited and is waited for here, so that nobody takes it for a command that ended.
        // SAFETY: waitpid with a null status writes nothing.
        while unsafe { libc::waitpid(pid, ptr::null_mut(), 0) } < 0 && Errno::last() == Errno::EINTR {}
        Err(CloneError { step, errno: Errno::from_raw(errno) })
    }
}

impl std::fmt::Debug for Cloner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cloner")
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// The child, from birth to its program or its end.
extern "C" fn child(argument: *mut c_void) -> c_int {
    let launch = argument.cast::<Launch>();
    // SAFETY: the parent passes its Launch, and waits. Every pointer in it is to a live, NUL-terminated string or a
    // null-terminated array of such. Only system calls follow.
    unsafe {
        (*launch).step = Step::Stdio;
        let fds = (*launch).fds;
        if libc::setsid() < 0 {
            return failed(launch);
        }
        // The terminal is taken before any descriptor is replaced: the sources are all above 2.
        if (*launch).terminal && libc::ioctl(fds[0], libc::TIOCSCTTY, 0) < 0 {
            return failed(launch);
        }
        for (target, fd) in (0..).zip(fds) {
            if libc::dup2(fd, target) < 0 {
                return failed(launch);
            }
        }
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const (*launch).descriptors) < 0 {
            return failed(launch);
        }
        (*launch).step = Step::Cwd;
        if libc::chdir((*launch).cwd) < 0
            && ((*launch).else_cwd.is_null() || libc::chdir((*launch).else_cwd) < 0)
        {
            return failed(launch);
        }
        (*launch).step = Step::Exec;
        libc::sigprocmask(libc::SIG_SETMASK, &raw const (*launch).mask, ptr::null_mut());
        let errno = execute(launch);
        (*launch).errno = errno;
    }
    127
}

/// Executes the first path that can be. Returns only the errno that tells best why none could.
///
/// # Safety
/// As for [`child`], from which alone it is called.
unsafe fn execute(launch: *mut Launch) -> c_int {
    let mut worst = libc::ENOENT;
    // SAFETY: see `child`.
    unsafe {
        let mut path = (*launch).paths;
        while !(*path).is_null() {
            libc::execve(*path, (*launch).argv, (*launch).env);
            match Errno::last_raw() {
                // Not here; go on, and remember that something was here but closed to us.
                libc::ENOENT
                | libc::ENOTDIR
                | libc::ENAMETOOLONG
                | libc::ELOOP
                | libc::ESTALE
                | libc::ENODEV => {}
                libc::EACCES => worst = libc::EACCES,
                // No program: a script without its first line, as execvp(3) and every shell take it.
                libc::ENOEXEC => {
                    *(*launch).shell_argv.add(1) = *path;
                    libc::execve(SHELL.as_ptr(), (*launch).shell_argv, (*launch).env);
                    return libc::ENOEXEC;
                }
                other => return other,
            }
            path = path.add(1);
        }
    }
    worst
}

/// # Safety
/// As for [`child`], from which alone it is called.
unsafe fn failed(launch: *mut Launch) -> c_int {
    // SAFETY: see `child`.
    unsafe { (*launch).errno = Errno::last_raw() };
    127
}
