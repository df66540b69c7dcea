"""stub"""
def write_page(run, records, summary):
    run.write_text("report.html", "x")
