//! Columns of text, as kubectl lays them out.

use crate::logs::line::harmless;

/// Lays rows out under a head, three spaces between columns. Whoever filled the cells, they do nothing to a terminal.
pub fn render(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| harmless(cell)).collect()).collect();
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(i, title)| {
            let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(title.chars().count())
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| -> String {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("   ").trim_end())
    };
    let mut out = line(&mut head.iter().copied());
    for row in &rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_string(), "x".to_string()], vec!["longer".to_string(), String::new()]];
        assert_eq!(super::render(&["N", "VALUE"], &rows), "N        VALUE\na        x\nlonger\n");
        assert_eq!(super::render(&["N"], &[vec!["\u{1b}[2J".to_string()]]), "N\n\\u{1b}[2J\n");
    }
}
