//! What every page has: the layout, the scripts and styles, who may ask, how figures are written.

pub mod access;
pub mod assets;
pub mod chart;
pub mod headers;
pub mod layout;
pub mod notice;
pub mod show;
