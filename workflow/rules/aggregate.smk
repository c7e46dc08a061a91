localrules:
    collect,
    summarise,
    plot,


rule collect:
    input:
        all_stamps,
        metrics=all_metrics,
        parity=all_verdicts,
    output:
        cells=f"{TABLES}/cells.csv",
        epochs=f"{TABLES}/epochs.csv",
    log:
        f"{TABLES}/collect.log",
    params:
        code=code_of("collect.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/collect.py --metrics {input.metrics:q} --parity {input.parity:q}"
        " --cells {output.cells:q} --epochs {output.epochs:q} > {log:q} 2>&1"


rule summarise:
    input:
        rules.collect.output.cells,
    output:
        csv=report(f"{TABLES}/summary.csv", category="Tables", caption="../report/summary.rst"),
        html=report(f"{TABLES}/summary.html", category="Tables", caption="../report/summary.rst"),
        md=f"{TABLES}/summary.md",
        tex=f"{TABLES}/summary.tex",
    log:
        f"{TABLES}/summarise.log",
    params:
        baseline=CONFIG.baseline,
        code=code_of("summarise.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/summarise.py --cells {input:q} --baseline {params.baseline}"
        " --output {output:q} > {log:q} 2>&1"


rule plot:
    input:
        cells=rules.collect.output.cells,
        epochs=rules.collect.output.epochs,
    output:
        svg=report(f"{FIGURES}/loss.svg", category="Figures", caption="../report/summary.rst"),
    log:
        f"{FIGURES}/plot.log",
    params:
        code=code_of("plot.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/plot.py --output {output:q} > {log:q} 2>&1"
