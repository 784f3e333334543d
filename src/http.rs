//! The HTTP API: requests in, messages to actors and reads of the database, JSON out.
//!
//! From the top down: [`routes`] names every path; one file handles each resource; [`state`],
//! [`page`], [`view`] and [`error`] are what they share. No file decides what a group does.

mod answer;
mod body;
mod compactions;
mod connection;
mod digest;
mod error;
mod events;
mod frames;
mod groups;
mod guard;
mod hosts;
mod locks;
mod meters;
mod metrics;
mod page;
mod permissions;
mod pieces;
mod query;
mod routes;
mod runs;
mod segments;
mod snapshot;
mod state;
mod status;
mod submit;
mod tasks;
mod turns;
mod unread;
mod view;
mod wait;

pub use self::{
    answer::answer,
    connection::Connection,
    guard::guard,
    hosts::AllowedHosts,
    locks::count as count_locks,
    meters::Meters,
    metrics::count,
    pieces::pieces,
    routes::configure,
    state::{AppState, Phase, WorkerCache},
    unread::Unread,
};
