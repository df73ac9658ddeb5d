# A CPU image: `docker build -t datxai .`, then `docker run -p 127.0.0.1:8765:8765 datxai` makes a small run and shows its
# report at http://localhost:8765/report.html; `docker run -v $PWD/runs:/work/runs datxai datxai [...]` is the command.
FROM python:3.12-slim
COPY constraints.txt pyproject.toml README.md LICENSE /src/
COPY conf /src/conf
COPY datxai /src/datxai
RUN pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu -c /src/constraints.txt \
        torch torchvision \
 && pip install --no-cache-dir -c /src/constraints.txt /src \
 && useradd --create-home datxai && mkdir -p /work/runs && chown -R datxai /work
USER datxai
WORKDIR /work
EXPOSE 8765
CMD ["sh", "-c", "datxai run=runs/tiny data.n_subjects=24 grid=slab_12mm training.max_epochs=2 'network.channels=[4,4,4,4]' 'split.sizes=[12,6,6]' && python -m http.server 8765 --directory runs/tiny"]
