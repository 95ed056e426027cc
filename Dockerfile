FROM python:3.12-slim

RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/app
ENV HOME=/home/user PATH=/home/user/.local/bin:$PATH PYTHONUNBUFFERED=1 \
    SYNESTHETE_HOST=0.0.0.0 SYNESTHETE_PORT=7860 SYNESTHETE_OUTPUT_FOLDER=/home/user/outputs

COPY --chown=user requirements.txt .
RUN pip install --no-cache-dir --user -r requirements.txt
COPY --chown=user . .
RUN python -m app models fetch language-model || echo "The app starts without its language model."

EXPOSE 7860
CMD ["python", "app.py"]
