"""What the tables of the panel show, for the tests to read."""


def texts(table) -> list[list[str]]:
    def text(row, column):
        item = table.item(row, column)
        return item.text() if item is not None else ""

    return [[text(row, column) for column in range(table.columnCount)] for row in range(table.rowCount)]
