//! Every source against recorded answers, and against answers that somebody spoiled.

mod fixture;
mod hostile;
mod iso;
mod sources;
