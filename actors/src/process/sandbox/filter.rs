//! System calls by which a TCP connection evades the rules of Landlock, refused by seccomp.
//!
//! Landlock judges `connect` and `bind` of plain TCP sockets. A kernel also connects by the first
//! `sendto` (TCP Fast Open), and by sockets of MPTCP and SMC, which fall back to plain TCP; and
//! io_uring makes these calls unseen. Each is refused as by a kernel that does not have it, so that
//! programs use their plain form.

use std::{collections::BTreeMap, env, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::{Confinement, Network};
use crate::profile::SandboxLevel;

/// Protocols that libc does not name on all systems.
const IPPROTO_SMC: u64 = 256;
const IPPROTO_MPTCP: u64 = 262;
const AF_SMC: u64 = 43;
const TCP_ULP: u64 = 31;
/// What x86_64 adds to the numbers of its calls with short pointers (x32), and those of them that
/// have other numbers: `sendmsg`, `sendmmsg`, `setsockopt`.
const X32: i64 = 0x4000_0000;
const X32_SENDMSG: i64 = 518;
const X32_SENDMMSG: i64 = 538;
const X32_SETSOCKOPT: i64 = 541;

/// One argument of a system call.
enum Is {
    Equal(u8, u64),
    Not(u8, u64),
    Has(u8, u64),
}

/// A call that is refused if all of these hold.
struct Refusal {
    errno: i32,
    call: i64,
    /// Its number as an x32 call.
    x32: i64,
    when: &'static [Is],
}

const FAST_OPEN: u64 = libc::MSG_FASTOPEN as u64;

#[rustfmt::skip]
const EVASIONS: [Refusal; 9] = [
    refusal(libc::EPROTONOSUPPORT, libc::SYS_socket,         libc::SYS_socket,         &[Is::Equal(2, IPPROTO_MPTCP)]),
    refusal(libc::EPROTONOSUPPORT, libc::SYS_socket,         libc::SYS_socket,         &[Is::Equal(2, IPPROTO_SMC)]),
    refusal(libc::EPROTONOSUPPORT, libc::SYS_socket,         libc::SYS_socket,         &[Is::Equal(0, AF_SMC)]),
    refusal(libc::EOPNOTSUPP,      libc::SYS_sendto,         libc::SYS_sendto,         &[Is::Has(3, FAST_OPEN)]),
    refusal(libc::EOPNOTSUPP,      libc::SYS_sendmsg,        X32_SENDMSG,              &[Is::Has(2, FAST_OPEN)]),
    refusal(libc::EOPNOTSUPP,      libc::SYS_sendmmsg,       X32_SENDMMSG,             &[Is::Has(3, FAST_OPEN)]),
    refusal(libc::ENOPROTOOPT,     libc::SYS_setsockopt,     X32_SETSOCKOPT,           &[Is::Equal(1, libc::IPPROTO_TCP as u64), Is::Equal(2, TCP_ULP)]),
    refusal(libc::ENOSYS,          libc::SYS_io_uring_setup, libc::SYS_io_uring_setup, &[]),
    refusal(libc::ENOSYS,          libc::SYS_io_uring_enter, libc::SYS_io_uring_enter, &[]),
];

/// Without a network: every socket but those of this machine's files and of the kernel.
const SOCKETS: [Refusal; 1] = [refusal(
    libc::EACCES,
    libc::SYS_socket,
    libc::SYS_socket,
    &[Is::Not(0, libc::AF_UNIX as u64), Is::Not(0, libc::AF_NETLINK as u64)],
)];

const fn refusal(errno: i32, call: i64, x32: i64, when: &'static [Is]) -> Refusal {
    Refusal { errno, call, x32, when }
}

/// Returns the filters of a sandbox. A program for another architecture than greenroom's own is
/// killed at its first system call: its calls have other numbers.
pub(super) fn programs(confinement: &Confinement) -> io::Result<Vec<BpfProgram>> {
    let has_network = confinement.network != Network::Only([].into());
    let wraps = confinement.level == SandboxLevel::Bubblewrap;
    let mut refused: Vec<&Refusal> = EVASIONS.iter().collect();
    // bubblewrap gives a network without a way out instead.
    refused.extend(SOCKETS.iter().filter(|_| !has_network && !wraps));
    // One filter has one answer.
    let mut answers: BTreeMap<i32, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
    for refusal in refused {
        let calls = answers.entry(refusal.errno).or_default();
        let numbers =
            [Some(refusal.call), cfg!(target_arch = "x86_64").then_some(X32 | refusal.x32)];
        for number in numbers.into_iter().flatten() {
            let rules = calls.entry(number).or_default();
            if !refusal.when.is_empty() {
                rules.push(rule(refusal.when)?);
            }
        }
    }
    answers.into_iter().map(|(errno, calls)| compile(errno, calls).map_err(unusable)).collect()
}

fn compile(
    errno: i32,
    calls: BTreeMap<i64, Vec<SeccompRule>>,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let arch = TargetArch::try_from(env::consts::ARCH)?;
    SeccompFilter::new(calls, SeccompAction::Allow, refuse, arch)?.try_into()
}

fn rule(when: &[Is]) -> io::Result<SeccompRule> {
    let conditions = when.iter().map(|is| {
        let (argument, operator, value) = match *is {
            Is::Equal(argument, value) => (argument, SeccompCmpOp::Eq, value),
            Is::Not(argument, value) => (argument, SeccompCmpOp::Ne, value),
            Is::Has(argument, bits) => (argument, SeccompCmpOp::MaskedEq(bits), bits),
        };
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    });
    conditions.collect::<Result<_, _>>().and_then(SeccompRule::new).map_err(unusable)
}

fn unusable(err: seccompiler::BackendError) -> io::Error {
    io::Error::other(format!("its filter of system calls cannot be built: {err}"))
}
