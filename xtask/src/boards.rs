//! `cargo xtask boards`: what each board can do, and the result of its last test.

use anyhow::Result;
use serde_json::json;
use tenure_boards::smc;

use crate::board::{self, Board, record};

/// Show the boards: what each can do, how QEMU starts it, how many of its vendor's calls reach the firmware, and the result and date of its last test on this machine.
///
/// A board is a folder of boards/ with its data (board.toml) and its page (README.md). Tests are noted in
/// target/boards/ by `cargo xtask test`; `cargo xtask test --board all` tests every board in every way.
#[derive(clap::Args)]
pub struct Args {
    /// A JSON array in place of the table.
    #[arg(long)]
    json: bool,
}

/// The task.
///
/// # Errors
/// If a board's data cannot be read.
pub fn task(args: &Args) -> Result<()> {
    let boards = board::all()?;
    if args.json {
        let all: Vec<serde_json::Value> = boards.iter().map(as_json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    print!("{}", table(&boards));
    Ok(())
}

const HEAD: [&str; 9] = [
    "board",
    "what",
    "CPUs",
    "GIC",
    "guests",
    "DMA protection",
    "vendor SMCs",
    "ways in (QEMU)",
    "last test",
];

fn table(boards: &[Board]) -> String {
    let row = |board: &Board| {
        [
            board.name.clone(),
            board.title.clone(),
            board.cpus.to_string(),
            gics(board).join(", "),
            if board.guests { "yes" } else { "no" }.to_owned(),
            board.dma.name().to_owned(),
            board.vendor_calls().len().to_string(),
            ways(board).join(", "),
            record::summary(&record::read(&board.name)),
        ]
    };
    let rows: Vec<[String; 9]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(boards.iter().map(row)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            format!("{cell:<width$}")
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn gics(board: &Board) -> Vec<&'static str> {
    board.gic.iter().map(|gic| gic.name()).collect()
}

fn ways(board: &Board) -> Vec<String> {
    board.qemu.ways.iter().map(|way| way.name()).collect()
}

fn as_json(board: &Board) -> serde_json::Value {
    let call = |call: &smc::Call| json!({ "id": call.id, "name": call.name, "why": call.why });
    let calls: Vec<_> = board.vendor_calls().iter().map(call).collect();
    json!({
        "name": board.name, "title": board.title, "cpus": board.cpus, "gic": gics(board), "guests": board.guests,
        "dma_protection": board.dma.name(), "vendor_smcs": calls, "ways": ways(board), "notes": board.notes,
        "tests": record::read(&board.name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_a_board_and_one_above() {
        let boards = board::all().unwrap();
        let table = table(&boards);
        assert_eq!(table.lines().count(), boards.len() + 1);
        let pi = table.lines().find(|line| line.starts_with("raspi3b")).unwrap();
        assert!(pi.contains("none") && pi.contains(" no "), "{pi}");
    }

    #[test]
    fn json_has_the_same() {
        let board = board::load("imx8mp-evk").unwrap();
        assert_eq!(as_json(&board)["gic"][0], "GICv3");
    }
}
