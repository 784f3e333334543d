//! The machine's limits for any program: SQLite with full sync, and the sync itself.

use std::{fs::File, io::Write as _, time::Instant};

use greenroom_test_support::programs::built;

use crate::{
    Result, Scale,
    database::row_rate,
    table::{Line, median, ms, quantile, rate},
};

/// Measures and describes the machine; there is no target.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (batch, rows) in [(1, scale.turns), (64, 64 * 300), (512, 512 * 100)] {
        let rates = (0..3).map(|_| row_rate(batch, rows)).collect::<Result<_>>()?;
        lines.push(Line {
            name: format!("SQLite, FULL, 200-byte rows, {batch} a commit"),
            limit: rate(median(rates)),
            ..Line::default()
        });
    }
    let mut file = tempfile::tempfile_in(built("")?)?;
    let mut syncs: Vec<f64> = (0..200).map(|_| sync(&mut file)).collect::<Result<_>>()?;
    syncs.sort_by(f64::total_cmp);
    lines.push(Line {
        name: "fdatasync of 4 KiB, median · p99".into(),
        limit: format!("{} · {}", ms(quantile(&syncs, 0.5)), ms(quantile(&syncs, 0.99))),
        ..Line::default()
    });
    Ok(lines)
}

fn sync(file: &mut File) -> Result<f64> {
    let start = Instant::now();
    file.write_all(&[7; 4096])?;
    file.sync_data()?;
    Ok(start.elapsed().as_secs_f64())
}
