//! The messages between the server and a shim.
//!
//! The shim's standard input is a socket to the server. First comes `LAUNCH` with five descriptors:
//! the agent's three streams, its working directory, and a memory file with the `Spec`; so no
//! command line and no environment but the agent's holds secrets. Then comes one byte per command.
//! The shim sends [`TreeEvent`]s, one line of JSON each.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Seek, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
    },
};
use serde::{Deserialize, Serialize};

use super::sandbox::Confinement;
use crate::profile::Rlimits;

/// The server's bytes besides those of [`TreeCommand`]. `LAUNCH` is the first, and carries the
/// descriptors.
const LAUNCH: u8 = b'L';
pub(super) const HEARTBEAT: u8 = b'.';

/// A signal for every process of the tree, as the byte by which the server orders it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum TreeCommand {
    Terminate = b'T',
    Kill = b'K',
}

impl TreeCommand {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Terminate, Self::Kill].into_iter().find(|command| *command as u8 == byte)
    }
}

/// The launch, as the server sends it to the shim.
#[derive(Serialize, Deserialize)]
pub(super) struct Spec {
    pub command: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// The working directory's path, for errors only: the agent starts in the descriptor.
    pub cwd: PathBuf,
    pub umask: Option<u32>,
    pub no_new_privs: bool,
    pub confinement: Option<Confinement>,
    pub rlimits: Rlimits,
    pub open_files: Option<u64>,
}

impl Spec {
    /// Writes it to a memory file: of any length, and read by the shim alone.
    pub(super) fn write(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create("launch", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file.into())
    }

    fn read(file: OwnedFd) -> io::Result<Self> {
        let (mut file, mut json) = (File::from(file), Vec::new());
        file.rewind()?;
        file.read_to_end(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

/// An event of an agent's process tree, in this order: `Started` then `Exited`, or `SpawnFailed`;
/// then `Gone`. After a killed shim, only `Gone` is certain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TreeEvent {
    /// The agent's main process runs. `start_time` is in clock ticks since boot.
    Started { pid: u32, start_time: u64 },
    /// It could not be started; `errno` is absent if no system call was made.
    SpawnFailed { errno: Option<i32>, message: String },
    /// The main process ended, by `exit(code)` or by a signal; others may still hold its pipes.
    Exited { code: Option<i32>, signal: Option<i32> },
    /// Processes may be left, for this reason. From the server itself, never from a shim.
    #[serde(skip)]
    Left { why: String },
    /// No process of the run is left, unless `Left` came before.
    Gone,
}

/// What the shim receives with the launch.
pub(super) struct Received {
    pub spec: Spec,
    /// The agent's stdin, stdout and stderr.
    pub streams: [OwnedFd; 3],
    /// Its working directory.
    pub cwd: OwnedFd,
}

/// Sends the launch with its descriptors, and closes the copies of its own here: those of the
/// agent's streams, and the file of the `Spec`.
pub(super) fn send_launch(
    control: impl AsFd,
    own: [OwnedFd; 4],
    cwd: BorrowedFd<'_>,
) -> io::Result<()> {
    let [stdin, stdout, stderr, spec] = own.each_ref().map(|fd| fd.as_fd());
    let borrowed = [stdin, stdout, stderr, cwd, spec];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(control, &[IoSlice::new(&[LAUNCH])], &mut ancillary, flags)?;
    Ok(())
}

/// Receives the launch. Returns `None` if the server ended before it.
pub(super) fn receive_launch(control: BorrowedFd<'_>) -> io::Result<Option<Received>> {
    let mut command = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let iov = &mut [IoSliceMut::new(&mut command)];
    if recvmsg(control, iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes == 0 {
        return Ok(None);
    }
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    match (command, <[OwnedFd; 5]>::try_from(rights.flatten().collect::<Vec<_>>())) {
        ([LAUNCH], Ok([stdin, stdout, stderr, cwd, spec])) => {
            let streams = [stdin, stdout, stderr];
            Ok(Some(Received { spec: Spec::read(spec)?, streams, cwd }))
        }
        _ => Err(io::Error::other("the first command is not a launch")),
    }
}

/// Sends an event to the server. The server may be gone, and a full socket belongs to a stopped
/// one: the tree's end must wait for neither.
pub(super) fn report(control: BorrowedFd<'_>, event: &TreeEvent) {
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        _ = send(control, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}
